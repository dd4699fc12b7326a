"""What is measured: each file measures one question and gives results."""
