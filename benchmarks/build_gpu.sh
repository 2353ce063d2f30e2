#!/bin/sh
# pymtg with its CUDA kernels, built into a folder to put on PYTHONPATH: by CMake alone, as the machine with the GPU may have
# no network and no scikit-build-core. Where nvcc does not work, without them: Triton's can still be tested.
#
#   sh benchmarks/build_gpu.sh FOLDER
#
# Needs cmake, a C++ compiler, pybind11 and nvcc. PYTHON chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=$1
rm -rf "$folder"
mkdir -p "$folder"
cp -RL pymtg "$folder/pymtg"
rm -f "$folder"/pymtg/*.so
[ -x "$(command -v ninja)" ] && export CMAKE_GENERATOR=Ninja

build() {
  cmake -S . -B "$folder/cmake-$1" -DCMAKE_BUILD_TYPE=Release -DPYMTG_CUDA="$1" \
    -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" &&
    cmake --build "$folder/cmake-$1" --parallel "$(nproc)" &&
    cmake --install "$folder/cmake-$1" --prefix "$folder"
}

build ON || {
  build OFF
  echo "built without the CUDA kernels"
  exit 1
}
