"""What things are: values and rules without any I/O. Imports nothing of ours but `imagen.errors` and `imagen.decoding`."""
