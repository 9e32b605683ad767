"""What a message's files are: images, PDFs, Word documents and texts.

Every file is read in a process of its own kind (`process`), with limits of memory and time, because
it may come from a stranger. The worker gives it an open file and gets back what is kept of it.

    names       the name that a file is shown under
    facts       what is known of a file that was read
    tokens      about how many tokens it takes
    faults      the errors, with their texts for users
    protocol    the messages between a worker and a reading process
    readers     the reading processes of a worker
    process     a reading process
    reading     the readers of the formats; only `process` imports them
"""
