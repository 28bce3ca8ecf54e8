"""What commands write and print."""
