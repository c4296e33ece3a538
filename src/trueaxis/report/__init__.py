"""The report: one page of HTML that shows a compressed directory, and what analyze and compare found, offline.

facts.py reads · a module per topic makes figures (figure.py) of it · page.py puts them into page.html, .css and .js
"""
