"""Whether one client's requests, answers or faults can hold up other clients."""
