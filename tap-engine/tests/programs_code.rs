//! What the shipped objects are made of.

use aya_obj::Object;
use tap_engine::shipped;

/// rbpf 0.4.1 extends a negative immediate of a 64-bit comparison with zeros, the kernel with ones: none may be there.
#[test]
fn no_comparison_with_a_negative_number() {
    const JUMP_WITH_IMMEDIATE: u8 = 0x05;
    const LOAD_OF_TWO_SLOTS: u8 = 0x18;
    for (name, bytes) in
        [("redis", shipped::REDIS), ("http1", shipped::HTTP1), ("lines", shipped::LINES), ("len4", shipped::LEN4)]
    {
        let object = Object::parse(bytes).unwrap();
        let mut instructions = 0;
        for function in object.functions.values() {
            let mut slots = function.instructions.iter().enumerate();
            while let Some((at, slot)) = slots.next() {
                instructions += 1;
                // JA, CALL and EXIT compare nothing.
                if slot.code & 0x0f == JUMP_WITH_IMMEDIATE && ![0x00, 0x80, 0x90].contains(&(slot.code & 0xf0)) {
                    assert!(slot.imm >= 0, "{name}, instruction {at} of {}: compares with {}", function.name, slot.imm);
                }
                if slot.code == LOAD_OF_TWO_SLOTS {
                    slots.next();
                }
            }
        }
        assert!(instructions > 10, "{name}: {instructions} instructions found");
    }
}
