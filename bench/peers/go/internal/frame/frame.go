// Package frame is as much of RFC 6455 as a load generator and its trivial counterpart need.
package frame

import (
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"

	"etlbench/internal/sock"
)

// Opcodes.
const (
	Continuation = 0x0
	Text         = 0x1
	Binary       = 0x2
	Close        = 0x8
	Ping         = 0x9
	Pong         = 0xA
)

const masked = 0x80

// Head is the head of a frame.
type Head struct {
	Opcode byte
	Final  bool
	Length int64
}

// Append appends a whole frame that holds a message; a client's is masked.
func Append(to []byte, opcode byte, payload []byte, mask bool) []byte {
	bit := byte(0)
	if mask {
		bit = masked
	}
	to = append(to, 0x80|opcode)
	switch n := len(payload); {
	case n < 126:
		to = append(to, bit|byte(n))
	case n < 1<<16:
		to = binary.BigEndian.AppendUint16(append(to, bit|126), uint16(n))
	default:
		to = binary.BigEndian.AppendUint64(append(to, bit|127), uint64(n))
	}
	if !mask {
		return append(to, payload...)
	}
	key := [4]byte{0x3A, 0x91, 0x5C, 0xE7}
	to = append(to, key[:]...)
	start := len(to)
	to = append(to, payload...)
	for i := range payload {
		to[start+i] ^= key[i&3]
	}
	return to
}

// Read consumes the head of a frame.
func Read(conn *sock.Conn) (Head, error) {
	start, err := conn.Peek(2)
	if err != nil {
		return Head{}, err
	}
	head := Head{Opcode: start[0] & 0x0F, Final: start[0]&0x80 != 0}
	if start[0]&0x70 != 0 {
		return head, errors.New("a frame of an extension that was not agreed upon")
	}
	bytes, key := 2, start[1]&masked != 0
	switch n := start[1] &^ masked; n {
	case 126:
		if start, err = conn.Peek(4); err != nil {
			return head, err
		}
		head.Length, bytes = int64(binary.BigEndian.Uint16(start[2:])), 4
	case 127:
		if start, err = conn.Peek(10); err != nil {
			return head, err
		}
		head.Length, bytes = int64(binary.BigEndian.Uint64(start[2:])), 10
	default:
		head.Length = int64(n)
	}
	if key {
		bytes += 4
		if _, err = conn.Peek(bytes); err != nil {
			return head, err
		}
	}
	conn.Skip(bytes)
	return head, nil
}

// Accept is the answer to a handshake's key.
func Accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}
