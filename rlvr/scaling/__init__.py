"""How much memory a run needs, before it is started: free functions of bytes on frozen records."""
