"""The server of `ham-dist serve`: HTTP and gRPC in, batches of a `Scorer` in between."""
