"""What every room needs: files, random streams, processes, precision, options, libraries."""
