"""Process groups, collectives, and failures of peers."""
