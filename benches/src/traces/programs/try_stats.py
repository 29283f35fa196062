import json, csv, io, sys
import numpy as np
import scipy.stats

sample = np.random.default_rng(3).normal(2, 1, 500)
test = scipy.stats.ttest_1samp(sample, 2)
out = io.StringIO()
csv.writer(out).writerow([float(test.statistic), float(test.pvalue)])
print(json.dumps(out.getvalue()))
