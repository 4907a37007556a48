// Package body is the content that objects carry in a benchmark: 64-bit words that count up from an object's first
// one, so that any object can be told from its neighbours, and any byte of it can be checked.
package body

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
)

const (
	// Slack is how many bytes a file is longer than one object: objects start at different offsets in it.
	Slack = 32 << 10

	word   = 8
	factor = 0x9E3779B97F4A7C15 // odd, hence invertible modulo 2^64
)

var inverse = invert(factor)

// Write makes the file that objects of `size` bytes are cut from.
func Write(path string, size int64) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(file, 1<<20)
	var raw [word]byte
	for i := int64(0); i < (size+Slack)/word; i++ {
		binary.LittleEndian.PutUint64(raw[:], uint64(i)*factor)
		if _, err := out.Write(raw[:]); err != nil {
			return err
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return file.Close()
}

// Body is a file that objects are cut from.
type Body struct {
	File *os.File
	Data []byte // the file, mapped
	Size int64  // bytes of one object
}

// Open maps a file. With size 0 the whole file is the one object.
func Open(path string, size int64) (*Body, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if size == 0 {
		size = info.Size()
	}
	if info.Size() < size {
		return nil, fmt.Errorf("%s has %d bytes, expected at least %d", path, info.Size(), size)
	}
	data := []byte{}
	if info.Size() > 0 {
		data, err = syscall.Mmap(int(file.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
		if err != nil {
			return nil, err
		}
	}
	return &Body{File: file, Data: data, Size: size}, nil
}

// Offset is where the n-th object starts.
func (b *Body) Offset(n int) int64 {
	room := (int64(len(b.Data)) - b.Size) / word
	if room <= 0 {
		return 0
	}
	return int64(n) * 37 % room * word
}

// At is the object that starts at an offset.
func (b *Body) At(offset int64) []byte {
	return b.Data[offset : offset+b.Size]
}

// Find tells by its first bytes which object this is; false where it is none.
func (b *Body) Find(start []byte) (int64, bool) {
	if len(start) < word {
		return 0, false
	}
	offset := binary.LittleEndian.Uint64(start) * inverse * word
	if offset > uint64(len(b.Data)) || int64(offset)+b.Size > int64(len(b.Data)) {
		return 0, false
	}
	return int64(offset), true
}

// Anonymous is a file in memory that nobody else sees.
func Anonymous(content []byte) (*os.File, error) {
	directory := "/dev/shm"
	if _, err := os.Stat(directory); err != nil {
		directory = ""
	}
	file, err := os.CreateTemp(directory, "etlbench")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, err
	}
	_, err = file.Write(content)
	return file, err
}

func invert(odd uint64) uint64 {
	x := odd // right in 3 bits; each step doubles them
	for i := 0; i < 5; i++ {
		x *= 2 - odd*x
	}
	return x
}
