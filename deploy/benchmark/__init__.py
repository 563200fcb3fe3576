"""The verdict: is the deployed network the same network, and what does it cost?"""
