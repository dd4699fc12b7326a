"""Files and folders at URLs such as s3://bucket/folder, listed, read and written by fsspec."""
