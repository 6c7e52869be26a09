"""Where tables are placed: sharding types, compute kernels, memory and traffic."""
