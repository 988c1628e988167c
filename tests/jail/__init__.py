"""The second wall, tried from its inside: native code where only a guest should be."""
