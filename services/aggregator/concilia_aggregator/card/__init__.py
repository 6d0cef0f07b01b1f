"""Model cards: what a job's records tell of the model that it published, for people, in Markdown.

Source: Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019).
"""
