"""Who owns conversations and streams: people, how they are known, and what they sign in with."""
