"""Everything that is PyTorch: layers, architectures, data sets, metrics, training.

Importing this package imports no torch; import the module that you need, for example
`segdeploy.models.deeplabv3`.
"""
