"""What batches share, whoever does the work: what there is to make, the journal, the next one, how far it is."""
