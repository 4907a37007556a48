module etlframework

go 1.25

require github.com/NVIDIA/aistore v1.4.0
