// 255 * 2^(-i/64), rounded: golden `EXPONENTIALS`. Written by gossamer.accelerator.rtl_tables.
`default_nettype none
module gs_exponential (
    input  wire [5:0] index_i,
    output reg  [7:0] exponential_o
);
    always @* begin
        case (index_i)
            6'd0: exponential_o = 8'd255;
            6'd1: exponential_o = 8'd252;
            6'd2: exponential_o = 8'd250;
            6'd3: exponential_o = 8'd247;
            6'd4: exponential_o = 8'd244;
            6'd5: exponential_o = 8'd242;
            6'd6: exponential_o = 8'd239;
            6'd7: exponential_o = 8'd236;
            6'd8: exponential_o = 8'd234;
            6'd9: exponential_o = 8'd231;
            6'd10: exponential_o = 8'd229;
            6'd11: exponential_o = 8'd226;
            6'd12: exponential_o = 8'd224;
            6'd13: exponential_o = 8'd222;
            6'd14: exponential_o = 8'd219;
            6'd15: exponential_o = 8'd217;
            6'd16: exponential_o = 8'd214;
            6'd17: exponential_o = 8'd212;
            6'd18: exponential_o = 8'd210;
            6'd19: exponential_o = 8'd208;
            6'd20: exponential_o = 8'd205;
            6'd21: exponential_o = 8'd203;
            6'd22: exponential_o = 8'd201;
            6'd23: exponential_o = 8'd199;
            6'd24: exponential_o = 8'd197;
            6'd25: exponential_o = 8'd195;
            6'd26: exponential_o = 8'd192;
            6'd27: exponential_o = 8'd190;
            6'd28: exponential_o = 8'd188;
            6'd29: exponential_o = 8'd186;
            6'd30: exponential_o = 8'd184;
            6'd31: exponential_o = 8'd182;
            6'd32: exponential_o = 8'd180;
            6'd33: exponential_o = 8'd178;
            6'd34: exponential_o = 8'd176;
            6'd35: exponential_o = 8'd175;
            6'd36: exponential_o = 8'd173;
            6'd37: exponential_o = 8'd171;
            6'd38: exponential_o = 8'd169;
            6'd39: exponential_o = 8'd167;
            6'd40: exponential_o = 8'd165;
            6'd41: exponential_o = 8'd164;
            6'd42: exponential_o = 8'd162;
            6'd43: exponential_o = 8'd160;
            6'd44: exponential_o = 8'd158;
            6'd45: exponential_o = 8'd157;
            6'd46: exponential_o = 8'd155;
            6'd47: exponential_o = 8'd153;
            6'd48: exponential_o = 8'd152;
            6'd49: exponential_o = 8'd150;
            6'd50: exponential_o = 8'd148;
            6'd51: exponential_o = 8'd147;
            6'd52: exponential_o = 8'd145;
            6'd53: exponential_o = 8'd144;
            6'd54: exponential_o = 8'd142;
            6'd55: exponential_o = 8'd141;
            6'd56: exponential_o = 8'd139;
            6'd57: exponential_o = 8'd138;
            6'd58: exponential_o = 8'd136;
            6'd59: exponential_o = 8'd135;
            6'd60: exponential_o = 8'd133;
            6'd61: exponential_o = 8'd132;
            6'd62: exponential_o = 8'd130;
            6'd63: exponential_o = 8'd129;
        endcase
    end
endmodule
`default_nettype wire
