"""Plain videos: in folders and in shards, with their captions."""
