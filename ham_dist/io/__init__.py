"""Files and bytes: paths, remote storage, downloads, huge pages."""
