"""Ground for every room: files, random streams, processes, precision, other libraries."""
