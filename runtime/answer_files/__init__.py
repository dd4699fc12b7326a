"""Answers as text for other programs: COCO's JSON, GeoJSON and tables, of one image or of all images."""
