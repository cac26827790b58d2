"""What robots send and get, as maps: read into observations, and written from chunks."""
