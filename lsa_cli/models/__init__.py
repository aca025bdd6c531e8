"""From a model file to a Classifier.

formats/ recognises the format of the bytes and reads headers, with pickles/ for what is pickled. weights.py finds and
chooses the weights. checkpoint.py adds the file's description. recognition.py names the network, architectures.py builds
it, fitting.py loads the weights; loading.py runs these three. classifier.py turns the network into images -> logits.
"""
