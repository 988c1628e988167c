# Expect: out_of_memory MemoryError
# Then: restored
# Limits: memory_mib=64
"""Small pieces that are all kept: what is left at the end is too little even to say so."""

chain = []
while True:
    chain = [chain, chain]
