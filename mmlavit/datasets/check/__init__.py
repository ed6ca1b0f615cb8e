"""Find out, before a long run, what is wrong with data: public datasets by name, and whatever a config names."""
