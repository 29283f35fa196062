import numpy as np
import scipy.optimize, scipy.special

best = scipy.optimize.minimize(scipy.optimize.rosen, [1.3, 0.7, 0.8, 1.9], method="L-BFGS-B")
assert best.success
root = scipy.optimize.brentq(lambda x: x**3 - 1, 0.5, 2)
assert abs(root - 1) < 1e-9
fit, _ = scipy.optimize.curve_fit(lambda x, a, b: a * x + b, np.arange(10.0), 3 * np.arange(10.0) + 1)
assert abs(fit[0] - 3) < 1e-6
print(scipy.special.gamma(5))
