"""`unet-bench`: latency, memory, answers and accuracy of an exported model, beside other libraries."""
