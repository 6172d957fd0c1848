"""A batch in the shell, over the processes of one machine or the machines of a cluster, by Ray."""
