"""Generated data: planted truth, Zipf-distributed ids, Criteo text."""
