"""What a study is asked: its document, and the same one smaller."""
