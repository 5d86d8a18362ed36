"""What `millrace data` shows of documents and tokens."""
