"""Find out, before a long run, what is wrong with data: public data sets by name, and whatever a config names."""
