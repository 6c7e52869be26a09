"""Size-search methods: which columns to keep. One file a method, behind `Method`."""
