"""What a first try of fathom needs: a large generated context and a model server without a model.

Nothing here is used by the services.
"""
