"""Configuration: environment variables, the providers' file, and the data folder."""
