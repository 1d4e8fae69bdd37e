def check_evaluator(config): return []
class _R:
    def to_json(self): return {"metrics": [], "missed": []}
def evaluate(*a, **k): return _R()
