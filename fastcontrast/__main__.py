"`python -m fastcontrast`: the command line"
from fastcontrast.cli import main

main()
