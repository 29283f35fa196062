import numpy as np
import scipy.signal, scipy.fft

b, a = scipy.signal.butter(4, 0.2)
wave = np.sin(np.linspace(0, 40, 2000))
smooth = scipy.signal.filtfilt(b, a, wave)
spectrum = np.abs(scipy.fft.rfft(smooth))
print(int(spectrum.argmax()))
