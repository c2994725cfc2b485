"""What a model does with its memory: probes that compare its predictions with and without parts of its past.

`returns` asks whether themes that come back are recognised; `comparison` puts several models beside each other.
"""
