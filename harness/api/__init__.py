"""What a plug-in implements, and the records that travel."""
