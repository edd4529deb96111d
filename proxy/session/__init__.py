"""One client's protocol state: transaction, settings, prepared statements and the reply queue. Knows no sockets."""
