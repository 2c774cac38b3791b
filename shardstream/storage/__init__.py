"""Where do the bytes live?"""
