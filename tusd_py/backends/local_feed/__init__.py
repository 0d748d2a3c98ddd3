"""Changes of uploads between the processes of one host, by Unix sockets."""
