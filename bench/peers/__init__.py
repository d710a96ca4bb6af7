"""Other engines, installed, checked and run beside millrace by bench/compare, bench/serve_compare and bench/embed."""
import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, "build", "peers")
