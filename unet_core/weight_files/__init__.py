"""Files of weights as people save them: read without executing anything that is in them, and searched for weights."""
