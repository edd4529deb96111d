"""Server connections: login, pools, replica lag and read-your-writes. Knows nothing of the clients' SQL."""
