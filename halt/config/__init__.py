"""What the environment, the providers' file and the data folder say."""
